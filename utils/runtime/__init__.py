"""What every layer stands on: errors, files, the console, signals, threads, devices, processes, seeds."""
