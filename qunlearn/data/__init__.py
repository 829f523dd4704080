"""Data sets, deletion requests and the splits of an unlearning run. numpy only."""
