"tools/photo_crops.py makes a set of classes from photographs: reproducible, balanced, nothing shared by both parts"
from itertools import islice
import numpy as np, pytest
from PIL import Image
from common import ROOT
import photo_crops as pc


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Two photographs of noise, one with an even half, as the command wants them"
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for name,size in dict(a=(800,1000,3), b=(900,800,3)).items():
        x = rng.integers(0, 256, size, dtype=np.uint8)
        if name == 'b': x[:400] = 128
        Image.fromarray(x).save(folder/f'{name}.png')
    return [str(folder/f'{o}.png') for o in 'ab']


def run(out, photos, *args): return pc.main([str(out), *photos, '--train', '5', '--test', '3', *args])

def files(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*.png'))}


def test_balanced_and_the_same_twice(tmp_path, photos):
    assert run(tmp_path/'x', photos) is None and run(tmp_path/'y', photos[::-1]) is None
    x = files(tmp_path/'x')
    assert x == files(tmp_path/'y')
    want = [f'{part}/{name}/{i:04}.png' for part,n in (('train',5),('test',3)) for name in 'ab' for i in range(n)]
    assert sorted(x) == sorted(want)
    for f in x:
        with Image.open(tmp_path/'x'/f) as img: assert (img.size, img.mode) == ((32,32), 'RGB')
    run(tmp_path/'z', photos, '--seed', '1')
    assert files(tmp_path/'z') != x


def test_a_class_does_not_depend_on_the_others(tmp_path, photos):
    other = tmp_path/'other.png'
    Image.open(photos[0]).rotate(90, expand=True).save(other)
    run(tmp_path/'x', photos)
    run(tmp_path/'y', [photos[0], str(other)])
    assert files(tmp_path/'x/train/a') == files(tmp_path/'y/train/a')


@pytest.mark.parametrize('width', (800, 801, 1067, 1422))
def test_no_pixel_in_both_parts(width):
    got = {o: np.array(list(islice(pc.boxes(width, 800, o, np.random.default_rng(0)), 3000))) for o in ('train','test')}
    for b in got.values():
        assert b.min() >= 0 and b[:,2].max() <= width and b[:,3].max() <= 800
        side = b[:,2] - b[:,0]
        assert (side == b[:,3] - b[:,1]).all() and (side.min(), side.max()) == (32, 96)
    assert got['test'][:,0].min() - got['train'][:,2].max() >= .09*width


def test_crops_come_from_their_box_alone(photos):
    img = pc.read_photo(photos[0])
    for part in ('train','test'):
        for crop,(x0,y0,x1,y1) in pc.crops(img, part, 4, np.random.default_rng(0)):
            alone = Image.new('RGB', img.size)
            alone.paste(img.crop((x0,y0,x1,y1)), (x0,y0))
            assert np.array_equal(crop, alone.crop((x0,y0,x1,y1)).resize((32,32), Image.LANCZOS))


def test_even_places_are_drawn_again(photos):
    found = pc.crops(pc.read_photo(photos[1]), 'train', 40, np.random.default_rng(0))
    assert min(pc.detail(crop) for crop,_ in found) >= pc.DETAIL
    assert pc.detail(Image.new('RGB', (32,32), (90,120,30))) == 0
    steps = np.arange(64, dtype=np.uint8).reshape(8,8).repeat(4, 0).repeat(4, 1) # differs between patches only
    assert pc.detail(Image.fromarray(steps)) == 0


def test_wrong_photographs(tmp_path, photos):
    small, text, flat, twin = (tmp_path/o for o in ('small.png', 'text.jpg', 'flat.png', 'twin/a.png'))
    Image.new('RGB', (1200,700)).save(small)
    text.write_text('no picture')
    Image.new('RGB', (900,900)).save(flat)
    for bad,why in ((small, '1200 x 700 px'), (text, 'cannot be read'), (tmp_path/'none.png', 'cannot be read'),
                    (flat, 'too little detail'), (twin, 'same name')):
        assert why in run(tmp_path/'out', [photos[0], str(bad)]), bad
        assert not (tmp_path/'out').exists()
    assert 'two or more' in run(tmp_path/'out', photos[:1])
    assert 'one or more' in run(tmp_path/'out', photos, '--test', '0')
    assert 'not empty' in run(tmp_path, photos)
    assert 'text.jpg' in run(text, photos) # a file where the folder should be


def test_the_list(tmp_path):
    with pytest.raises(ValueError, match='mate-backgrounds.*install'): pc.listed(tmp_path)
    rows = [o.split() for o in pc.LIST.read_text().splitlines() if not o.startswith('#')]
    assert len({o[0] for o in rows}) == len(rows) >= 10
    for _,_,path in rows:
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/path).touch()
    assert sorted(pc.listed(tmp_path)) == sorted(o[0] for o in rows)


def test_read_as_a_labelled_folder(tmp_path, photos):
    from gmml_nb.data import as_labelled
    run(tmp_path/'x', photos)
    ds = as_labelled(tmp_path/'x')
    assert ds.vocab == ['a','b'] and {k: len(o) for k,o in ds.splits.items()} == dict(train=10, test=6)
