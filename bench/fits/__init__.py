"""Will a bundle fit a device."""
