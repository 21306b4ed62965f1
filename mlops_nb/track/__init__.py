"""What happened: the W&B mirror, tables of runs, the leaderboard."""
