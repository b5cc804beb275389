"""Figures and the report. They read records and claims; nothing here computes a prediction twice."""
