//! Images that stay on a device: a graph that reads uploaded pixels becomes one that is told which
//! images it reads. What it makes of them is the same, to the bit.

use super::{Graph, Node, Source, Value};
use crate::ops::{Emit, GatherImages, Op, ValueId};
use crate::tensor::{Shape, TensorType};

/// Name of the input that is replaced.
const PIXELS: &str = "pixels";
/// Name of the input that takes its place: which images, `u32 [N, 1, 1, 1]`.
pub const INDICES: &str = "indices";

/// How the images of a set lie on a device ([`GatherImages`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSet {
    /// Side of an image in pixels.
    pub side: usize,
    /// Images of each part.
    pub parts: Vec<usize>,
}

impl ImageSet {
    /// So many images, in as few parts as a device binds; `None` where it binds not even one image,
    /// or there is none.
    pub fn new(images: usize, side: usize, max_binding: usize) -> Option<Self> {
        let image = Self::op(side).images(1).bytes();
        // Kernels take whole vectors of four words.
        let most = max_binding / 16 * 16 / image;
        if images == 0 || most == 0 {
            return None;
        }
        let part = |first: usize| most.min(images - first);
        Some(Self { side, parts: (0..images).step_by(most).map(part).collect() })
    }

    fn op(side: usize) -> GatherImages {
        GatherImages { h: side, w: side }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.parts.iter().sum()
    }

    /// Words that an image takes.
    pub fn words(&self) -> usize {
        Self::op(self.side).words()
    }

    /// The type of each part.
    pub fn types(&self) -> Vec<TensorType> {
        self.parts.iter().map(|images| Self::op(self.side).images(*images)).collect()
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.types().iter().map(|ty| ty.bytes().next_multiple_of(16)).sum()
    }
}

/// The graph with pixels that are gathered from a set; one that reads no pixels stays as it is.
///
/// # Panics
/// If it reads images of another size.
#[must_use]
pub fn gather(mut g: Graph, set: &ImageSet) -> Graph {
    let pixels = |v: &ValueId| g.values[v.0 as usize].name == PIXELS;
    let Some(at) = g.inputs.iter().position(pixels) else { return g };
    let (pixels, shape) = (g.inputs[at], g.ty(g.inputs[at]).shape);
    assert_eq!([shape.h, shape.w], [set.side; 2], "images of another size");
    let input = |ty, name: String, source| Value { ty, name, source, pin: None };
    let indices = TensorType::u32(Shape::new(shape.n, 1, 1, 1));
    let indices = g.value(input(indices, INDICES.into(), Source::Input));
    let mut inputs = vec![indices];
    for (part, ty) in set.types().into_iter().enumerate() {
        inputs.push(g.value(input(ty, format!("images{part}"), Source::Images(part))));
    }
    g.inputs[at] = indices;
    let name = "images".into();
    let op = Op::from(ImageSet::op(set.side));
    let others = std::mem::take(&mut g.nodes);
    g.push(Node { op, name, inputs, outputs: vec![pixels] });
    others.into_iter().for_each(|node| g.push(node));
    g
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Decode;

    #[test]
    fn parts_are_whole_images_that_a_device_binds() {
        let parts = |images, side, most| ImageSet::new(images, side, most).map(|set| set.parts);
        // CIFAR-10's training images in a browser: 138 MB of at most 134 each.
        assert_eq!(parts(45_000, 32, 128 << 20), Some(vec![43_690, 1_310]));
        assert_eq!(parts(45_000, 32, 1 << 31), Some(vec![45_000]));
        // An image of 3 pixels a side takes 7 words, of which 2 images take 56 bytes.
        assert_eq!(parts(5, 3, 63), Some(vec![1; 5]));
        assert_eq!(parts(5, 3, 64), Some(vec![2, 2, 1]));
        assert_eq!((parts(5, 3, 27), parts(0, 3, 64)), (None, None));
        let set = ImageSet::new(5, 3, 64).expect("a set");
        assert_eq!((set.images(), set.words(), set.bytes()), (5, 7, 64 + 64 + 32));
    }

    #[test]
    fn what_reads_pixels_reads_gathered_ones() {
        let mut g = Graph::default();
        let ty = TensorType::u32(Shape::new(2, 3, 3, 1));
        let (labels, pixels) = (g.input("labels", ty), g.input(PIXELS, ty));
        let decode = || Op::from(Decode { mean: [0.0; 3], std: [1.0; 3] });
        let [x, y] = [pixels, labels].map(|input| g.emit1(decode(), &[input]));
        g.output("x", x);
        g.output("y", y);
        let set = ImageSet::new(5, 3, 64).expect("a set");
        let gathered = gather(g.clone(), &set);
        let names: Vec<_> =
            gathered.inputs.iter().map(|v| &gathered.values[v.0 as usize].name[..]).collect();
        assert_eq!(names, ["labels", INDICES]);
        let ops: Vec<_> = gathered.nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(ops, ["gather_images", "decode", "decode"]);
        assert_eq!((gathered.nodes[0].outputs[0], gathered.nodes[1].inputs[0]), (pixels, pixels));
        for (i, node) in gathered.nodes.iter().enumerate() {
            let source = gathered.values[node.outputs[0].0 as usize].source;
            assert_eq!(source, Source::Node { node: i, output: 0 });
        }
        assert_eq!(gathered.images().count(), 3);
        let without = Graph::default();
        assert!(gather(without, &set).nodes.is_empty());
    }
}
