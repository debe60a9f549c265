"""Other data sets, word vectors and encoders."""
