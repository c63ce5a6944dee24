"""What a safety engineer asks of a bundle's C, answered by other people's tools."""
