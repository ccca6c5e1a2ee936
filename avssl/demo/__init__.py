"""The whole story on generated clips."""
