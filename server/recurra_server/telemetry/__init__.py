"""What the server tells about itself: metrics and logs. Timings arrive as data and are recorded here."""
