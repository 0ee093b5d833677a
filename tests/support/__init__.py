"""What tests share: waiting, measuring from outside, and comparing a machine before and after. Knows nothing of the product's insides."""
