"""LSTM, GRU and minGRU."""
