"""From token ids to token ids: encoding, batches, the decode loop, stopping, sampling."""
