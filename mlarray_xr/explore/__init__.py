"""Looking at volumes: pictures made from a bounded number of chunks."""
