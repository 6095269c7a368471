"""What watches the system itself: metrics, notifications."""
