"""Which of two strategies is faster on the devices here, by paired runs."""
