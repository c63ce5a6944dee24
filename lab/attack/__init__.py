"""What hostile hands, failing disks and lost power can do to a bundle and its memory."""
