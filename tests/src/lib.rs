//! brolly-tests
