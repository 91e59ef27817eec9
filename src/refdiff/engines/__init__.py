"""Back-ends behind the Session protocol."""
