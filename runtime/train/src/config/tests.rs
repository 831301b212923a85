//! Configurations that read back as they print, and everything that can be wrong with others.

use proptest::prelude::*;

use super::*;

/// That of the design.
const EXAMPLE: &str = include_str!("tests/example.toml");

/// The least that says what is to be done.
const LEAST: &str =
    "model = \"m\"\n[data]\ntrain = \"a.jsonl\"\nseq_len = 8\n[train]\nsteps = 100\n";

fn parse(text: &str) -> TrainConfig {
    TrainConfig::parse("train.toml", text).unwrap_or_else(|error| panic!("{error}")).0
}

/// What is wrong, a line each.
fn problems(text: &str) -> Vec<String> {
    let error = TrainConfig::parse("train.toml", text).map(|(config, _)| config).unwrap_err();
    error.problems.iter().map(|p| format!("{}:{} {p}", p.line, p.column)).collect()
}

/// The only problem of the least configuration with more lines, in tables that come after.
fn problem(more: &str) -> String {
    let problems = problems(&format!("{LEAST}{more}"));
    assert_eq!(problems.len(), 1, "{more}: {problems:#?}");
    problems[0].split_once(' ').unwrap().1.to_owned()
}

fn notes(text: &str) -> Vec<String> {
    let (_, notes) = TrainConfig::parse("train.toml", text).unwrap_or_else(|e| panic!("{e}"));
    notes.iter().map(ToString::to_string).collect()
}

#[test]
fn the_example_is_read_in_full() {
    let config = parse(EXAMPLE);
    assert!(notes(EXAMPLE).is_empty());
    assert_eq!(config.model, PathBuf::from("checkpoint_dir"));
    assert_eq!((config.data.seq_len, config.data.micro_batch), (256, 8));
    assert_eq!((config.data.format, config.data.shuffle), (Format::Text, true));
    let rule = Optimizer::Adamw { betas: [0.9, 0.95], eps: 1e-8 };
    assert_eq!((config.optimizer.rule, config.optimizer.lr), (rule, 3e-4));
    assert_eq!(config.optimizer.schedule, Schedule::Cosine { min_lr: 0.0 });
    assert_eq!((config.optimizer.clip_norm, config.optimizer.warmup_steps), (Some(1.0), 10));
    assert_eq!(config.mesh, MeshConfig::default());
    assert_eq!(config.checkpoint.keep, 3);
    assert_eq!(config.log.tensorboard, Some("runs".into()));
}

#[test]
fn what_is_left_out_is_printed() {
    assert_eq!(parse(LEAST).to_toml(), include_str!("tests/least.toml"));
}

#[test]
fn everything_reads_back_as_it_prints() {
    let everything = include_str!("tests/everything.toml");
    let rules = [
        "name = \"lion\"\nbetas = [0.95, 0.98]",
        "name = \"sgd\"\nmomentum = 0.9\nnesterov = true\nschedule = \"linear\"\nmin_lr = 1e-9",
        "name = \"adafactor\"\nclip_threshold = 2\nschedule = \"wsd\"\ndecay_steps = 7",
        "name = \"muon\"\nlr = 0.02\nadamw_lr = 3e-4\nschedule = \"wsd\"",
    ];
    let rules = rules.map(|rule| format!("{LEAST}[optimizer]\n{rule}\n"));
    for text in [LEAST, EXAMPLE, everything].into_iter().chain(rules.iter().map(String::as_str)) {
        let config = parse(text);
        assert_eq!(parse(&config.to_toml()), config, "{}", config.to_toml());
    }
    let config = parse(everything);
    assert_eq!(config.data.sources().len(), 2);
    assert_eq!(config.memory.device, Some(ByteSize(80 << 30)));
    assert_eq!(config.memory.offload, Offload::Nvme("/scratch".into()));
    assert_eq!(config.groups.len(), 2);
    assert!(config.groups[0].matcher().unwrap().is_match("model.embed_tokens.weight"));
    assert_eq!(config.optimizer.schedule, Schedule::Wsd { min_lr: 1e-5, decay_steps: 10 });
}

#[test]
fn all_problems_are_one_report() {
    let error = TrainConfig::parse("train.toml", include_str!("tests/wrong.toml")).unwrap_err();
    assert_eq!(format!("{error}\n"), include_str!("tests/wrong.txt"));
}

#[test]
fn faults_of_syntax_hide_no_other_problem() {
    let text = LEAST.replace("steps = 100", "steps = = 100") + "[optimizer]\nlrr = 3\n[mesh\n";
    let problems = problems(&text);
    assert!(problems.iter().any(|p| p.starts_with("6:") && p.contains("syntax")), "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("8:1 `optimizer.lrr`")), "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("9:")), "{problems:#?}");
    assert!(!problems.iter().any(|p| p.contains("is missing")), "{problems:#?}");
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for (key, values, wanted) in [
        ("lr", &["nan", "inf", "-1e-3", "0", "0.0", "\"1e-3\"", "true"][..], "a number above 0"),
        ("weight_decay", &["-0.1", "nan"], "a number of at least 0"),
        ("clip_norm", &["0", "-inf"], "a number above 0"),
        ("betas", &["[0.9]", "[0.9, 1.0]", "[nan, 0.9]", "0.9", "[0.9, 0.9, 0.9]"], "a list of 2"),
        ("warmup_steps", &["-1", "1.5", "1e2", "\"10\""], "a whole number from 0 to"),
    ] {
        for value in values {
            let told = problem(&format!("[optimizer]\n{key} = {value}\n"));
            let start = format!("`optimizer.{key}` is ");
            assert!(told.starts_with(&start) && told.contains(wanted), "{told}");
        }
    }
    let huge = problem("[optimizer]\nwarmup_steps = 99999999999999999999999\n");
    assert!(huge.contains("and must be a whole number"), "{huge}");
    let point = problem("[optimizer]\nwarmup_steps = 1e2\n");
    assert!(point.ends_with("; write it without point and exponent"), "{point}");
    let quoted = problem("[checkpoint]\nkeep = \"3\"\n");
    assert!(quoted.ends_with("; write it without quotes"), "{quoted}");
}

#[test]
fn contradictions_are_named() {
    let both = "[[data.blend]]\npath = \"b\"\nweight = 1\n";
    for (more, told) in [
        (both, "`data.train` is given beside [[data.blend]]"),
        ("[optimizer]\nlr = 1e-4\nmin_lr = 1e-3\n", "`optimizer.min_lr` is 0.001, which is above"),
        (
            "[optimizer]\nschedule = \"wsd\"\nwarmup_steps = 60\ndecay_steps = 50\n",
            "`optimizer.decay_steps` is 50, and 40 of 100 steps are left after 60 of warmup",
        ),
        ("[optimizer]\nname = \"sgd\"\nnesterov = true\n", "`optimizer.nesterov` is true without"),
        ("[mesh]\ndata = 6\nexpert = 4\n", "`mesh.expert` is 4, which does not divide `mesh.data`"),
        ("[[groups]]\nregex = \"a\"\nfreeze = true\nlr = 1\n", "`groups[0].freeze` is true beside"),
        ("[[groups]]\nregex = \"a\"\n", "`groups[0].regex` changes nothing"),
        ("[[groups]]\nregex = \"a(\"\nlr = 1\n", "`groups[0].regex` is no regular expression: "),
        ("[[groups]]\nlr = 1\n", "`groups[0].regex` is missing"),
        ("[eval]\nevery = 3\n", "`eval.data` is missing"),
        (
            "[eval]\nprompts = [\"a\", \"b\"]\nsamples = 33\n",
            "`eval.prompts` make more than 64 samples at once",
        ),
        ("[eval]\ndata = \"b\"\nprompts = []\n", "`eval.prompts` is"),
        ("[eval]\ndata = \"b\"\ntemperature = -1\n", "`eval.temperature` is -1, and must be"),
        ("[lora]\nalpha = 3\n", "`lora.rank` is missing"),
        ("[memory]\noffload = \"nvme:\"\n", "`memory.offload` is \"nvme:\", and must be"),
        ("[memory]\ndevice = \"80 bananas\"\n", "`memory.device` is \"80 bananas\", and must be"),
    ] {
        let found = problem(more);
        assert!(found.starts_with(told), "{found}");
    }
    let lora = format!("init = \"random\"\n{LEAST}[lora]\nrank = 8\n");
    assert!(problems(&lora)[0].contains("adapts weights, and init = \"random\" has none"));
    let rows = LEAST.replace("a.jsonl", "a.npy");
    for (key, told) in [
        ("shuffle = true", "is true, and rows of .npy are taken in order"),
        ("format = \"chat\"", "contradicts the name of the file, which ends in .npy"),
    ] {
        let found = problems(&rows.replace("seq_len", &format!("{key}\nseq_len")));
        assert!(found.len() == 1 && found[0].contains(told), "{found:#?}");
    }
    let many = problems(&LEAST.replace("seq_len = 8", "seq_len = 65536\nmicro_batch = 65536"));
    assert!(many[0].contains("`data.micro_batch` makes micro-steps of 4294967296 tokens"));
    let tokens = problems(&LEAST.replace("seq_len", "format = \"tokens\"\nseq_len"));
    assert!(tokens.len() == 1 && tokens[0].contains("those come as .npy files"), "{tokens:#?}");
}

#[test]
fn rows_of_tokens_are_known_by_name() {
    let config = parse(&LEAST.replace("a.jsonl", "a.npy"));
    let DataConfig { format, shuffle, column, .. } = &config.data;
    assert_eq!((*format, *shuffle, column.as_deref()), (Format::Tokens, false, None));
    let eval = config.data.of_file(Path::new("b.jsonl"));
    assert_eq!((eval.format, eval.column.as_deref()), (Format::Text, Some("text")));
}

#[test]
fn keys_without_effect_are_notes() {
    let adam = "[optimizer]\nname = \"sgd\"\nbetas = [0.9, 0.95]\neps = 1e-8\nmin_lr = 0.0\n\
                warmup_steps = 200\n[checkpoint]\nevery = 1000\n[eval]\ndata = \"b\"\n\
                samples = 2\n[mesh]\nzero = 2\n";
    assert_eq!(
        notes(&format!("{LEAST}{adam}")),
        [
            "`optimizer.betas` has no effect: it belongs to adamw, lion or muon",
            "`optimizer.eps` has no effect: it belongs to adamw, adafactor or muon",
            "`optimizer.min_lr` has no effect: the schedule is constant",
            "`optimizer.warmup_steps` is 200 of 100 steps: `optimizer.lr` is never reached",
            "`checkpoint.every` is more than `train.steps`: the end alone is saved",
            "`eval.samples` has no effect without `prompts`",
            "`mesh.zero` has no effect: there is one rank along `mesh.data`",
        ]
    );
}

#[test]
fn meshes_are_compared_with_the_ranks_at_hand() {
    let mesh = parse(&format!("{LEAST}[mesh]\ndata = 4\ntensor = 2\nexpert = 2\nzero = 3\n")).mesh;
    assert_eq!((mesh.ranks(), mesh.check(8)), (8, Ok(())));
    assert_eq!(
        mesh.check(6).unwrap_err().to_string(),
        "the mesh has 8 ranks (data 4 x tensor 2 x pipeline 1 x sequence 1), and 6 take part; start \
         so many, or change [mesh]"
    );
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let error = TrainConfig::load(Path::new("/none/train.toml")).unwrap_err().to_string();
    assert!(error.contains("/none/train.toml:1:1: cannot be read: "), "{error}");
    let path = std::env::temp_dir().join(format!("brolly-config-{}.toml", std::process::id()));
    fs::write(&path, b"model = \"m\"\nx = \"\xff\"\n").unwrap();
    let error = TrainConfig::load(&path).unwrap_err();
    fs::remove_file(&path).unwrap();
    let [problem] = &error.problems[..] else { panic!("{error}") };
    assert_eq!((problem.line, problem.column), (2, 6));
    assert!(error.to_string().contains("is not UTF-8 from here on"), "{error}");
}

proptest! {
    #[test]
    fn no_text_is_a_panic(text in "([a-z.]{0,6}( ?= ?|\\[|\\]|\n|\"|#|é|[0-9.e-]{0,4}|true|\\{|\\}|,)){0,20}") {
        if let Err(error) = TrainConfig::parse("t", &text) {
            prop_assert!(!error.problems.is_empty());
            let _ = error.to_string();
        }
    }

    /// One line of a good configuration replaced or left out.
    #[test]
    fn altered_examples_are_never_a_panic(line in 0..50usize, with in "[a-z_]{0,9}( = )?[0-9a-z\"\\[\\]{}.-]{0,9}") {
        let mut lines: Vec<&str> = EXAMPLE.lines().collect();
        let at = line % lines.len();
        lines[at] = &with;
        if let Err(error) = TrainConfig::parse("t", &lines.join("\n")) {
            prop_assert!(!error.problems.is_empty());
            let _ = error.to_string();
        }
    }
}
