"""What the command line and Python both call: compare, plan, sweep, inspect, calibrate."""
