"""Files and tables in, arrays with geometry out. Knows nothing of networks."""
