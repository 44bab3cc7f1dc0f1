"""irm_jax: instruction-guided person re-identification (Instruct-ReID++, models IRM and IRM++) in JAX and Flax."""
