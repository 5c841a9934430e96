"""What it costs: benchmarks, and the tables that README shows."""
