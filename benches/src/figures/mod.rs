//! The figures, by name.

mod devices;
mod fanout;
mod full;
mod growth;
mod idle;
mod ingest;
mod rates;
mod start;
mod storm;
mod sync;

use anyhow::bail;

use crate::Size;
use crate::outcome::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    Ingest,
    Idle,
    Rates,
    Fanout,
    Devices,
    Storm,
    Sync,
    Full,
    Start,
    Growth,
}

impl Figure {
    const ALL: [Figure; 10] = [
        Figure::Ingest,
        Figure::Idle,
        Figure::Rates,
        Figure::Fanout,
        Figure::Devices,
        Figure::Storm,
        Figure::Sync,
        Figure::Full,
        Figure::Start,
        Figure::Growth,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Figure::Ingest => "ingest",
            Figure::Idle => "idle",
            Figure::Rates => "rates",
            Figure::Fanout => "fanout",
            Figure::Devices => "devices",
            Figure::Storm => "storm",
            Figure::Sync => "sync",
            Figure::Full => "full",
            Figure::Start => "start",
            Figure::Growth => "growth",
        }
    }

    pub(crate) async fn measure(self, size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
        match self {
            Figure::Ingest => ingest::measure(size, outcome).await,
            Figure::Idle => idle::measure(size, outcome).await,
            Figure::Rates => rates::measure(size, outcome).await,
            Figure::Fanout => fanout::measure(size, outcome).await,
            Figure::Devices => devices::measure(size, outcome).await,
            Figure::Storm => storm::measure(size, outcome).await,
            Figure::Sync => sync::measure(size, outcome).await,
            Figure::Full => full::measure(size, outcome).await,
            Figure::Start => start::measure(size, outcome).await,
            Figure::Growth => growth::measure(size, outcome).await,
        }
    }
}

/// Those of these names, in the order of the table; `all` stands for all.
pub(crate) fn choose(names: &[String]) -> anyhow::Result<Vec<Figure>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Figure::ALL.to_vec());
    }
    if let Some(unknown) = names.iter().find(|name| !Figure::ALL.iter().any(|figure| figure.name() == **name))
    {
        let known = Figure::ALL.map(Figure::name).join(", ");
        bail!("there is no figure {unknown}; there are: {known}");
    }
    Ok(Figure::ALL.into_iter().filter(|figure| names.iter().any(|name| name == figure.name())).collect())
}
