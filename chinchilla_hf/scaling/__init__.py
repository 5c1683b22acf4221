"""What training costs: FLOPs of a step, and what this machine can do."""
