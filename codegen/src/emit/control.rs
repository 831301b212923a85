//! Loops and conditionals as closures.

use super::{Cmp, Elem, Emitter, Ty, Val, join};

impl Emitter {
    /// `for i in (lo..hi).step_by(step)`, i64.
    pub fn for_each(&self, lo: Val, hi: Val, step: i64, body: impl FnOnce(Val)) {
        let _ = self.for_loop(lo, hi, step, &[], |index, _| {
            body(index);
            Vec::new()
        });
    }

    /// As [`Self::for_each`], carrying values: `body(i, values)` returns the next ones.
    #[must_use]
    pub fn for_loop(
        &self,
        lo: Val,
        hi: Val,
        step: i64,
        init: &[Val],
        body: impl FnOnce(Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        assert!(step > 0, "loop step {step}");
        let step = self.int(lo.ty(), step);
        let index = self.fresh(lo.ty());
        let counts = matches!(lo.ty(), Ty::Scalar(Elem::I64 | Elem::I32));
        assert!(counts && hi.ty() == index.ty(), "loop bounds must be i64, or i32 both");
        let types: Vec<Ty> = init.iter().map(|value| value.ty()).collect();
        let carried: Vec<Val> = types.iter().map(|&ty| self.fresh(ty)).collect();
        let pairs = carried.iter().zip(init).map(|(inner, outer)| format!("{inner} = {outer}"));
        let head = if init.is_empty() {
            String::new()
        } else {
            format!(" iter_args({}) -> ({})", join(pairs), join(&types))
        };
        let counter = lo.ty();
        let results = self.open(
            &format!("scf.for {index} = {lo} to {hi} step {step}{head} : {counter} {{"),
            &types,
        );
        self.nested(|| {
            let next = body(index, &carried);
            self.yield_values(&next, &types);
        });
        self.line(format_args!("}}"));
        results
    }

    /// Runs `body` if the scalar `condition` holds.
    pub fn if_then(&self, condition: Val, body: impl FnOnce()) {
        self.line(format_args!("scf.if {condition} {{"));
        self.nested(body);
        self.line(format_args!("}}"));
    }

    /// Runs one of two bodies, each giving values of `types`.
    #[must_use]
    pub fn if_else(
        &self,
        condition: Val,
        types: &[Ty],
        then: impl FnOnce() -> Vec<Val>,
        otherwise: impl FnOnce() -> Vec<Val>,
    ) -> Vec<Val> {
        let arrow = if types.is_empty() { String::new() } else { format!(" -> ({})", join(types)) };
        let results = self.open(&format!("scf.if {condition}{arrow} {{"), types);
        self.nested(|| {
            let values = then();
            self.yield_values(&values, types);
        });
        self.line(format_args!("}} else {{"));
        self.nested(|| {
            let values = otherwise();
            self.yield_values(&values, types);
        });
        self.line(format_args!("}}"));
        results
    }

    /// Runs one of two bodies.
    pub fn either(&self, condition: Val, then: impl FnOnce(), otherwise: impl FnOnce()) {
        let _ = self.if_else(
            condition,
            &[],
            || {
                then();
                Vec::new()
            },
            || {
                otherwise();
                Vec::new()
            },
        );
    }

    /// Runs `body(case)` for the one of `cases` that the integer `value` equals, if any.
    pub fn switch(&self, value: Val, cases: &[i64], mut body: impl FnMut(i64)) {
        for &case in cases {
            let hit = self.cmp(Cmp::Eq, value, self.int(value.ty(), case));
            self.if_then(hit, || body(case));
        }
    }

    /// Starts an operation with results of `types`, and returns them.
    fn open(&self, text: &str, types: &[Ty]) -> Vec<Val> {
        match types {
            [] => {
                self.line(format_args!("{text}"));
                Vec::new()
            }
            &[ty] => {
                let value = self.fresh(ty);
                self.line(format_args!("{value} = {text}"));
                vec![value]
            }
            many => {
                let id = self.fresh(many[0]).id;
                self.line(format_args!("%{id}:{} = {text}", many.len()));
                (0..).zip(many).map(|(index, &ty)| Val { id, result: Some(index), ty }).collect()
            }
        }
    }

    fn yield_values(&self, values: &[Val], types: &[Ty]) {
        let given: Vec<Ty> = values.iter().map(|value| value.ty()).collect();
        assert_eq!(given, types, "values at the end of a region");
        if !values.is_empty() {
            self.line(format_args!("scf.yield {} : {}", join(values), join(types)));
        }
    }
}
