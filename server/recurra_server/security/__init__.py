"""Who may do what: certificates, tokens, identities, roles. Asked once for each call or stream, never for a step."""
