"""What people look at: the page in a browser, top in a terminal, figures in a real Prometheus."""
