//! The manuals explain all that there is.
