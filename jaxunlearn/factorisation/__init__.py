"""What alternating least squares is made of; `jaxunlearn.methods.exact.als` is the learner."""
