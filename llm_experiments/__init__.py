"""The same compositions on a real language model: trained, merged, asked, recorded."""
