"""What the page says of domains that have no compositions: a section each."""
