"""Captions for people: commands, folders, the web page, export."""
