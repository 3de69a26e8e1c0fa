"""What clients send and receive, one module per noun."""
