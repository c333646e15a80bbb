//! What a test needs of the machine. Where it is not there, the test ends, counted as skipped with the reason.

/// The calling test's name, as the runner shows it.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

/// A lab, with an agent to put in.
#[macro_export]
macro_rules! lab {
    () => {
        match $crate::agent::lab_or_skip($crate::this_test!()) {
            Some(lab) => lab,
            None => return,
        }
    };
}

/// A lab and Envoy.
#[macro_export]
macro_rules! lab_and_envoy {
    () => {{
        let test = $crate::this_test!();
        match ($crate::agent::lab_or_skip(test), $crate::envoy::program_or_skip(test)) {
            (Some(lab), Some(program)) => (lab, program),
            _ => return,
        }
    }};
}

/// Redis.
#[macro_export]
macro_rules! redis_or_skip {
    () => {
        if !$crate::redis::available_or_skip($crate::this_test!()) {
            return;
        }
    };
}
