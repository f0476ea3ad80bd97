"""What a model's answers and scans are worth: figures, each beside what chance or real data alone would give."""
