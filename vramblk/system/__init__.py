"""What the operating system offers: kernel calls, /proc, cgroups, logs, signals, TLS."""
