"""N2N learning (Ashok et al., ICLR 2018)."""
