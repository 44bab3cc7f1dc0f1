"""The networks of IRM: image encoder, instruction encoders, editing transformer, and the model that joins them."""
