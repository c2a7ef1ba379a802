//! What is drawn of a run is what its plan gives, in its place.

use aavae::data::Batch;
use aavae::device::{Data, Host, PlanId, Session};
use aavae::eval::pictures::augmentation_grid;
use aavae::method::{self, Method, ModelConfig, Training};
use aavae::ops::StepUniforms;

use super::support::{config, load, pixels, reset};

const IMAGES: usize = 2;
const SIDE: usize = 16;

fn drawing(model: &ModelConfig) -> (Session, PlanId, Batch) {
    let training = method::training(model, Training::default());
    let figures = method::figures(model, &training.graph.layout);
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&figures.graph.layout);
    let id = load(&mut session, &figures, true).expect("a plan");
    reset(&mut session, &training, 1).expect("weights");
    let batch = Batch {
        pixels: pixels(0..IMAGES, SIDE),
        indices: (0..IMAGES as u32).collect(),
        places: (0..IMAGES as u32).collect(),
        labels: vec![0; IMAGES],
        step: 0,
        epoch: 0,
        valid: IMAGES,
    };
    (session, id, batch)
}

/// Every image on top of six views: those of the step that is asked for and, as a step makes one
/// view (SimCLR's two), of the five (two) after it. A pixel is drawn as two by two, between images
/// are two more.
#[test]
fn the_augmentation_is_drawn_as_six_views() {
    for (method, per_step) in [(Method::Aavae, 1), (Method::Simclr, 2)] {
        let model = config(method, SIDE, IMAGES);
        let at = |step: u32| StepUniforms::seeded(7, 100 + step);
        let (mut session, id, batch) = drawing(&model);
        let picture =
            augmentation_grid(&mut session, id, &model, &batch, &at(0)).expect("a picture");
        let drawn = image::load_from_memory(&picture.bytes).expect("a PNG").to_rgb8();
        let extent = |images: usize| (images * SIDE * 2 + (images - 1) * 2) as u32;
        assert_eq!(drawn.dimensions(), (extent(IMAGES), extent(7)));
        assert_eq!(drawn.dimensions(), (picture.width, picture.height));

        let (mut session, id, batch) = drawing(&model);
        session.upload(id, 0, Data::U32(&batch.pixels)).expect("images");
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for step in 0..6 / per_step as u32 {
            session.run(id, &at(step)).expect("a step");
            session.drain(id).expect("a step");
            let views = session.read(id, 1).expect("views");
            rows.extend(views.chunks(views.len() / per_step).map(<[f32]>::to_vec));
        }
        assert_eq!(rows.len(), 6);
        let row = |which: usize| -> Vec<u8> {
            let (top, size) = (which * (SIDE * 2 + 2), SIDE * 2);
            let at = |i: usize, y: usize, x: usize| (i * (size + 2) + x, top + y);
            let places = (0..IMAGES).flat_map(|i| {
                (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| at(i, 2 * y + 1, 2 * x)))
            });
            places.flat_map(|(x, y)| drawn.get_pixel(x as u32, y as u32).0).collect()
        };
        let bytes = |pixel: &u32| [*pixel as u8, (*pixel >> 8) as u8, (*pixel >> 16) as u8];
        assert_eq!(row(0), batch.pixels.iter().flat_map(bytes).collect::<Vec<_>>());
        for (i, views) in rows.iter().enumerate() {
            let values = views.chunks(4).flat_map(|rgba| {
                let value = |c: usize| (rgba[c] * model.std[c] + model.mean[c]) * 255.0;
                [value(0), value(1), value(2)]
            });
            let drawn = row(i + 1);
            assert_eq!(drawn.len(), values.clone().count());
            let off =
                values.zip(drawn).map(|(x, byte)| (x.clamp(0.0, 255.0) - f32::from(byte)).abs());
            assert!(off.fold(0.0, f32::max) < 0.51, "{method:?}: view {i}");
            assert!(rows[..i].iter().all(|other| other != views), "{method:?}: view {i} again");
        }
    }
}
