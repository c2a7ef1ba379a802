// How many rows a loop over rows loads before it adds up the first: what hides the latency of
// memory where an invocation has few neighbours. Requires nothing of the importer; its host sets
// AHEAD.
const AHEAD: u32 = 8u; // spec
