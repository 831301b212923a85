//! Every family against the interpreter: the operator table's own samples, then layouts, symbolic
//! sizes and the bitwise promises.

mod attention;
mod bitwise;
mod dropout;
mod layouts;
mod moe;
mod numbers;
mod order;
mod prompt;
mod run;
mod samples;
mod training;
mod windows;
