"""From raw scans to model-ready brains in MNI space. Knows nothing of networks; read scan.py first, then run.py."""
