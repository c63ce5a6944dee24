"""Bills of materials: what is in a bundle, in the words of CycloneDX and of SPDX."""
