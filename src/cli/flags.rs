//! The settings of a run as flags of commands: help, value names and parsers follow from the list
//! in `run::settings`.

use std::marker::PhantomData;
use std::ops::Deref;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::method::{Compare, Method};
use crate::model::{Depth, Stem};
use crate::optim::Optimizer;
use crate::run::settings::{
    DataKind, Flag, PrecisionKind, RunConfig, SETTINGS, Schedule, Setting, settings,
};

/// Which settings a command takes, and what is taken where they are not typed.
pub(super) trait Selection {
    /// Whether the command takes a setting.
    fn takes(setting: &Setting) -> bool;
    /// What stands for a setting that is not typed, in words; `None` for nothing.
    fn default(setting: &Setting) -> Option<String>;
}

/// The settings of a [`Selection`] that were typed.
#[derive(Debug)]
pub(super) struct Flags<S> {
    typed: Typed,
    selection: PhantomData<S>,
}

impl<S> Deref for Flags<S> {
    type Target = Typed;
    fn deref(&self) -> &Typed {
        &self.typed
    }
}

impl<S: Selection> clap::Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        let settings = SETTINGS.iter().filter(|setting| takes::<S>(setting));
        command.args(settings.map(argument::<S>))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Selection> clap::FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { typed: Typed::read::<S>(matches), selection: PhantomData })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Whether a command with this selection has a flag for a setting.
fn takes<S: Selection>(setting: &Setting) -> bool {
    setting.flag != Flag::InFile && S::takes(setting)
}

/// A setting as an argument of a command; its identifier is the setting's key.
fn argument<S: Selection>(setting: &Setting) -> Arg {
    let name = setting.flag_name();
    let arg = Arg::new(setting.key)
        .long(name.trim_start_matches('-').to_owned())
        .help_heading(setting.section);
    let arg = match setting.flag {
        Flag::Off(help) => arg.help(help),
        Flag::On | Flag::InFile => arg.help(setting.help()),
        Flag::Value(value) => {
            let default = S::default(setting);
            let default = default.map_or(String::new(), |text| format!(" (default: {text})"));
            arg.value_name(value).help(format!("{}{default}", setting.help()))
        }
    };
    with_type(setting.key, arg)
}

/// An argument that takes values of a type.
macro_rules! taking {
    ($arg:ident, bool) => {
        $arg.action(ArgAction::SetTrue)
    };
    ($arg:ident, Vec<$of:ident>) => {
        $arg.action(ArgAction::Append).value_delimiter(',').value_parser(value_parser!($of))
    };
    ($arg:ident, Option<$of:ident>) => {
        $arg.value_parser(value_parser!($of))
    };
    ($arg:ident, $type:ident) => {
        $arg.value_parser(value_parser!($type))
    };
}

/// What was typed of an argument that takes values of a type.
macro_rules! typed {
    ($matches:ident, $setting:ident, bool) => {
        $matches.get_flag($setting.key).then_some($setting.flag == Flag::On)
    };
    ($matches:ident, $setting:ident, Vec<$of:ident>) => {
        $matches.get_many::<$of>($setting.key).map(|values| values.cloned().collect())
    };
    ($matches:ident, $setting:ident, Option<$of:ident>) => {
        $matches.get_one::<$of>($setting.key).cloned().map(Some)
    };
    ($matches:ident, $setting:ident, $type:ident) => {
        $matches.get_one::<$type>($setting.key).cloned()
    };
}

/// Expands the list of settings to what may be typed of them.
macro_rules! flags {
    ($($section:literal { $(
        $(#[doc = $help:literal])+
        $key:ident: $type:ident $(<$of:ident>)? = $default:expr $(=> $unset:literal)?,
        $flag:expr, $resume:expr $(, $range:expr)?;
    )+ })+) => {
        /// What was typed of the settings.
        #[derive(Debug, Default)]
        pub(super) struct Typed { $($( pub(super) $key: Option<$type $(<$of>)?>, )+)+ }

        impl Typed {
            fn read<S: Selection>(matches: &ArgMatches) -> Self {
                let mut read = Self::default();
                for setting in SETTINGS.iter().filter(|setting| takes::<S>(setting)) {
                    match setting.key {
                        $($( stringify!($key) => {
                            read.$key = typed!(matches, setting, $type $(<$of>)?);
                        } )+)+
                        _ => unreachable!("the list has a field for every key"),
                    }
                }
                read
            }

            /// Sets what was typed.
            pub(super) fn apply(&self, config: &mut RunConfig) {
                $($( if let Some(value) = &self.$key { config.$key = value.clone(); } )+)+
            }
        }

        fn with_type(key: &str, arg: Arg) -> Arg {
            match key {
                $($( stringify!($key) => taking!(arg, $type $(<$of>)?), )+)+
                _ => arg,
            }
        }
    };
}
settings!(flags);
