"""The commands that the command line and Python share: compare, plan, sweep, inspect, calibrate."""
