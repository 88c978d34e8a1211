"Crops in the geometry of the original photographs: their distribution, their pixels, and their way from a file to the model"
import numpy as np, pytest, torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop
from fastai.callback.core import Callback
from gmml_nb.augment import centre_crop, crop_resize, draw_crops
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.evaluate import features
from gmml_nb.files import image_files
from gmml_nb.images import from_pil, read_image
from gmml_nb.pixels import as_float, fit_image
from gmml_nb.pretrain import gmml_learner

TINY = dict(patch_size=8, blocks=(1, 2), model_args=dict(embed_dim=16, depth=2, num_heads=2))
def learner(dls, **kw): return gmml_learner(dls, 'vit_tiny_patch16_224', **{**TINY, **kw})
def gen(seed): return torch.Generator().manual_seed(seed)
def pixels(img): return as_float(torch.from_numpy(from_pil(img).copy()))


def test_images_of_their_own_size_get_the_crops_they_always_got():
    "Boxes of the first version, which knew no other geometry than the image's own"
    want = [[8, 13, 48, 53], [2, 5, 59, 64], [2, 11, 47, 40], [12, 7, 28, 26], [15, 18, 48, 51], [45, 49, 16, 21]]
    for hw in (None, torch.tensor([[64, 96]]*6)):
        assert draw_crops(torch.empty(6, 3, 64, 96), generator=gen(42), hw=hw).tolist() == want
    assert draw_crops(torch.empty(6, 3, 224, 224), generator=gen(42), hw=torch.tensor([[64, 96]]*6)).tolist() == want
    assert draw_crops(torch.empty(5, 1, 9, 200), generator=gen(7)).tolist() == [[0, 94, 9, 12]]*5


@pytest.mark.parametrize('seed', range(6))
def test_distribution_is_torchvisions(seed):
    rng, n = np.random.default_rng(seed), 4000
    torch.manual_seed(seed)
    for _ in range(3):
        hw, lo = tuple(int(o) for o in np.exp(rng.uniform(np.log(4), np.log(3000), 2))), rng.uniform(.01, .6)
        scale, ratio = (lo, rng.uniform(lo, 1)), tuple(sorted(rng.uniform(.4, 2.5, 2)))
        ours = draw_crops(torch.empty(n, 1, 1, 1), scale, ratio, hw=torch.tensor([hw]).expand(n, 2)).numpy()
        x = torch.empty(1, *hw)
        theirs = np.array([RandomResizedCrop.get_params(x, scale, ratio) for _ in range(n)])
        assert ours.min() >= 0 and (ours[:, :2] + ours[:, 2:] <= hw).all() and ours[:, 2:].min() >= 1
        worst = min(ks_2samp(a, b).pvalue for a, b in zip(ours.T, theirs.T))
        assert worst > 1e-4, (hw, scale, ratio, worst) # 72 of these


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Photographs of several shapes, one of them lying on its side with a tag that says so"
    folder = tmp_path_factory.mktemp('photos')
    china, flower = (Image.fromarray(o) for o in load_sample_images().images)
    flower.save(folder/'a.jpg', quality=95)
    china.crop((180, 0, 430, 427)).save(folder/'b.jpg', quality=95)
    turned = Image.Exif(); turned[274] = 8
    china.rotate(-90, expand=True).save(folder/'c.jpg', quality=95, exif=turned)
    flower.crop((0, 100, 640, 300)).save(folder/'d.png')
    return folder


@pytest.mark.parametrize('store', [None, 224, (300, 180)], ids=str)
def test_crops_of_the_store_and_of_the_file(photos, store):
    "The same boxes, out of the stored image and with Pillow out of the file, differ by resampling alone"
    dls = pretrain_dls(photos, size=224, bs=4, valid_pct=0, store=store, device='cpu')
    x, = dls.train.dataset.batch(range(4))
    files = [read_image(f) for f in image_files(photos)]
    assert x.hw.tolist() == [list(o.size[::-1]) for o in files] and len({tuple(o) for o in x.hw.tolist()}) == 3
    x, hw = as_float(x.as_subclass(torch.Tensor)), x.hw
    for seed in range(5):
        b = draw_crops(x, generator=gen(seed), hw=hw)
        ours = crop_resize(x, b, (64, 96), hw)
        theirs = torch.stack([pixels(f.resize((96, 64), Image.Resampling.BICUBIC, box=(l, t, l+w, t+h)))
                              for f, (t, l, h, w) in zip(files, b.tolist())])
        diff = (ours - theirs).flatten(1)
        assert (diff**2).mean(1).sqrt().max() < .09 and (diff**2).mean().sqrt() < .045 and diff.mean(1).abs().max() < .004
        for s in ((1, 0), (-1, 0), (0, 1), (0, -1)): # neither is moved against the other
            moved = torch.roll(ours, s, (2, 3))[..., 2:-2, 2:-2] - theirs[..., 2:-2, 2:-2]
            assert ((moved**2).mean() > (diff**2).mean()).all()


def test_held_out_images_are_the_undistorted_middle(photos):
    dls = pretrain_dls(photos, size=(64, 96), bs=4, valid_pct=0, store=400, device='cpu')
    learn = learner(dls)
    x = learn.gmml.denormalise(learn.gmml.held_out(4))
    want = torch.stack([pixels(fit_image(read_image(f), (64, 96))) for f in image_files(photos)])
    assert x.shape == want.shape and (x - want).abs().mean() < .02
    shown, = dls.train.decode(dls.train.dataset.batch(range(4)))
    assert (shown.as_subclass(torch.Tensor) - x).abs().max() < 1e-5


def test_features_are_of_the_middle(photos):
    "An encoder is shown the same by a loader of stored images and by one that fits each file"
    dls = pretrain_dls(photos, size=(64, 96), bs=4, valid_pct=0, store=(128, 192), device='cpu')
    learn = learner(dls)
    a, _ = features(learn, dls.train)
    files = image_files(photos)
    b, _ = features(learn, finetune_dls((files, [0, 1]*2), size=(64, 96), recipe=None, valid_pct=0, stats=dls.stats, device='cpu').train)
    assert a.shape == (4, 16) and (a - b).abs().mean() < .08*a.std() # the middle of one is half a pixel beside the other's


class Spy(Callback):
    "What the model is to restore, and the sizes that came with the batch"
    order = 9.6
    def before_fit(self): self.seen, self.sizes = {True: [], False: []}, []
    def before_batch(self): self.seen[self.training].append(self.yb[0])
class Sizes(Callback):
    order = 9.4 # fastai has made plain tensors by now
    def before_batch(self): self.learn.spy.sizes.append(self.xb[0].hw.tolist())

@pytest.mark.parametrize('kw', [dict(), dict(cache=None), dict(cache=None, num_workers=2)], ids=str)
def test_margins_are_seen_in_training_and_sizes_arrive(tmp_path, kw):
    "Panoramas of 3:1 with a red left end: crops show it, the middle of held-out ones does not"
    x = np.random.default_rng(0).integers(0, 100, (40, 120, 3), dtype=np.uint8)
    x[:, :24, 0] = 255
    for i in range(20): Image.fromarray(x).save(tmp_path/f'{i:02}.png')
    dls = pretrain_dls(tmp_path, size=32, bs=8, valid_pct=.2, device='cpu', **kw)
    learn = learner(dls, cbs=[Spy(), Sizes()], jitter_p=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-4)
    seen = {k: learn.gmml.denormalise(torch.cat(v))[:, 0] for k, v in learn.spy.seen.items()}
    assert seen[True].shape == (32, 32, 32) and seen[False].shape == (8, 32, 32)
    red = {k: (v > .9).float().mean((1, 2)) for k, v in seen.items()}
    assert (red[True] > .3).sum() > 3 and (red[True] == 0).sum() > 3 and (red[False] == 0).all()
    assert all(o == [40, 120] for b in learn.spy.sizes for o in b) and len(learn.spy.sizes) == 6


def test_sizes_that_do_not_belong_to_the_images_are_refused(photos):
    x, = pretrain_dls(photos, size=32, bs=4, valid_pct=0, device='cpu').one_batch()
    with pytest.raises(ValueError, match='4 originals, but 2 images'): draw_crops(x[:2], hw=x[:2].hw)


def test_arrays_have_their_own_geometry():
    x = np.zeros((8, 20, 60), np.uint8); x[..., 20:40] = 255
    dls = pretrain_dls(x, size=16, bs=4, valid_pct=0, stats=([.5], [.5]), device='cpu')
    assert dls.one_batch()[0].shape == (4, 1, 20, 60) and dls.size == (16, 16)
    assert torch.equal(centre_crop(as_float(torch.from_numpy(x[:1, None])), (20, 20)), torch.ones(1, 1, 20, 20))
    learn = learner(dls)
    with learn.no_bar(): learn.fit_gmml(1, estimate=False)
    assert np.isfinite(learn.recorder.losses).all()
