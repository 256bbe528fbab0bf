"""What a trial costs before it trains."""
