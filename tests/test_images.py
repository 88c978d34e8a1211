"Files as cameras, scanners, laboratories, satellites and network drives make them: read rightly, or refused in a sentence"
import json, random, struct, warnings, zlib
from pathlib import Path
import numpy as np, pytest, tifffile, torch
from PIL import Image
from timm.data import auto_augment, create_transform
import gmml_nb.cache as C
import gmml_nb.images as I
from gmml_nb.augment import Augment, centre_crop
from gmml_nb.files import image_files
from gmml_nb.images import decode_files, from_pil, image_sizes, measure_depth, plain_image, read_image, read_stored
from gmml_nb.pixels import crop_mode, fit_batch, fit_image

H, W = 40, 60
yy, xx = np.mgrid[0:H, 0:W]
RGB = np.stack([255*xx/(W-1), 255*yy/(H-1), 255*xx*yy/(H-1)/(W-1)], -1).round().astype(np.uint8)
G = RGB[..., 0]
NIR = np.random.default_rng(0).integers(20, 230, (H, W, 1), dtype=np.uint8)
CUT = np.where((xx > 9) & (yy > 9), 255, 0)[..., None].astype(np.uint8)
def u16(a, k): return a.astype(np.uint16)*k

def read(f, c=3, **kw):
    "Pixels of a file, the same from both readers, and what is said of it"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        a = np.asarray(read_image(f, c, **kw)).astype(int)
    x, hw = read_stored(f, a.shape[:2], c, **kw)
    assert hw == a.shape[:2] == tuple(image_sizes([f])[0]) and np.array_equal(x if c == 3 else x[0], a.transpose(2, 0, 1) if c == 3 else a)
    return a, {str(o.message).split(': ', 1)[1] for o in heard if o.category is UserWarning and ': ' in str(o.message)}

def tiff(tmp_path, a, **kw):
    tifffile.imwrite(tmp_path/'x.tif', a, **kw)
    return tmp_path/'x.tif'

def png16(a, colour, extra=b''):
    "A PNG of 16 bits by hand, which Pillow does not write: (h,w,c)"
    part = lambda t, d: struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))
    head = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, colour, 0, 0, 0)
    rows = b''.join(b'\0' + o.astype('>u2').tobytes() for o in a)
    return b'\x89PNG\r\n\x1a\n' + part(b'IHDR', head) + extra + part(b'IDAT', zlib.compress(rows)) + part(b'IEND', b'')


# which way is up

@pytest.mark.parametrize('kind', ['tif', 'jpg', 'png', 'webp'])
def test_upright_once(tmp_path, kind):
    "Pillow turns a TIFF as it loads it, and no other"
    up, f = np.zeros((H, W, 3), np.uint8), tmp_path/f'x.{kind}'
    up[:20], up[:20, :30, 1] = 255, 0
    for tag, turn in {1: None, **I.TURNS}.items():
        back = turn and {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}.get(turn, turn)
        img, exif = Image.fromarray(up), Image.Exif()
        exif[274] = tag
        (img if turn is None else img.transpose(back)).save(f, exif=exif, **(dict(quality=95) if kind in ('jpg', 'webp') else {}))
        assert np.abs(read(f)[0] - up).mean() < 3, (kind, tag)
        with Image.open(f) as lazy: assert np.abs(np.asarray(plain_image(lazy)).astype(int) - up).mean() < 3, (kind, tag, 'plain_image')


# deep files

@pytest.mark.parametrize('bits', [16, 14, 12, 10, 8])
def test_any_number_of_bits_in_16(tmp_path, bits):
    ramp = np.tile(np.linspace(0, 1, 256), (8, 1))
    deep = (ramp*(2**bits - 1)).round().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path/'x.png')
    tifffile.imwrite(tmp_path/'y.tif', deep.astype('>u2'), byteorder='>', compression='zlib')
    (tmp_path/'z.pgm').write_bytes(b'P5 256 8 %d\n' % (2**bits - 1) + (deep.astype('>u2') if bits > 8 else deep.astype(np.uint8)).tobytes())
    for f in tmp_path.iterdir():
        a, _ = read(f, 1)
        assert len(np.unique(a)) > 250 and a.max() == 255 and np.abs(a - 255*ramp).max() <= 1, f.name

@pytest.mark.parametrize('top', [1., 1.01, .3, 300., 255, 256, 70_000])
def test_floats_and_long_numbers(tmp_path, top):
    a, _ = read(tiff(tmp_path, (np.tile(np.linspace(0, 1, 256), (8, 1))*top).astype(np.float32 if isinstance(top, float) else np.int32)), 1)
    assert len(np.unique(a)) > 230 and abs(a.mean() - 127.5) < 1

def test_one_scale_for_a_data_set(tmp_path, capsys):
    files = [tmp_path/f'{i}.png' for i in range(3)]
    for f, top in zip(files, (300, 414, 100)): Image.fromarray((np.tile(np.linspace(0, 1, 99), (9, 1))*top).astype(np.uint16)).save(f)
    Image.fromarray(RGB).save(tmp_path/'8.png'); (tmp_path/'broken.png').write_bytes(files[0].read_bytes()[:60])
    depth = measure_depth([*files, tmp_path/'8.png', tmp_path/'broken.png', tmp_path/'none.png'])
    assert json.loads(json.dumps(depth)) == {'16-bit': [0, 414]}
    assert capsys.readouterr().out == 'the brightest of 3 16-bit images is 414 of 65535: scaled by 414\n'
    assert [read(f, 1, depth=depth)[0].max() for f in files] == [185, 255, 62] and measure_depth([tmp_path/'8.png']) is None
    Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(files[0])
    assert 'brighter than white, which is 414' in read(files[0], 1, depth=depth)[1].pop()

def test_ends_that_are_not_0(tmp_path, capsys):
    a = np.linspace(0, 1, 600).reshape(20, 30)
    for v, want in (((a*4095 - 1024).astype(np.int16), [-1024, 3071]), ((a*2 - 1).astype(np.float32), [-1, 1]), ((28_000 + a*3000).astype(np.uint16), [28_000, 31_000])):
        f = tiff(tmp_path, v)
        depth = measure_depth([f])
        assert list(depth.values()) == [want] and f'darkest of 1 {list(depth)[0]} image is {want[0]:g}' in capsys.readouterr().out
        assert np.abs(read(f, 1, depth=depth)[0] - 255*a).max() <= 1

def test_pixels_without_a_value(tmp_path):
    holes = G.astype(np.float32); holes[:5], holes[5] = np.nan, np.inf
    none, marked = holes*np.nan, (G/np.float32(255)); marked[:5] = -9999
    for a, kw in ((holes, {}), (marked, dict(extratags=[(42113, 2, 0, '-9999', True)])), (np.where(marked < 0, np.float32(-3.4e38), marked), {})):
        x, said = read(tiff(tmp_path, a, **kw), 1)
        assert (x[:5] == 0).all() and np.abs(x - G)[6:].max() <= 1 and 'no number' in said.pop()
    with pytest.raises(ValueError, match='none of its pixels is a number'): read_image(tiff(tmp_path, none))
    assert measure_depth([tmp_path/'x.tif']) is None

def test_white_is_zero(tmp_path):
    "In 8, 16 and 32 bits, alone and of a set"
    for a in (255-G, u16(255-G, 16), (255-G).astype(np.float32)/255, (255-G > 100)):
        f = tiff(tmp_path, a, photometric='miniswhite')
        want = G if a.dtype != bool else 255*(a if I._tag(Image.open(f), 262) else ~a)
        for depth in (None, measure_depth([f])): assert np.abs(read(f, 1, depth=depth)[0] - want).max() <= 1, a.dtype

@pytest.mark.parametrize('k', [4, 16, 257])
def test_colour_of_16_bits(tmp_path, k):
    "Of which Pillow keeps the upper half"
    kinds = [tiff(tmp_path, u16(RGB, k), photometric='rgb', **kw) and (tmp_path/'x.tif').read_bytes() for kw in (
        {}, dict(byteorder='>'), dict(compression='zlib', predictor=True), dict(tile=(32, 32), compression='zlib'), dict(byteorder='>', compression='zlib'))]
    for i, b in enumerate([*kinds, png16(u16(RGB, k), 2)]):
        (tmp_path/'y').write_bytes(b)
        assert np.abs(read(tmp_path/'y')[0] - RGB).max() <= 1, i
        with Image.open(tmp_path/'y') as lazy: assert np.abs(np.asarray(plain_image(lazy)).astype(int) - RGB).max() <= 1
    assert I.measure_depth([tmp_path/'y']) == {'16-bit': [0, 255*k]}
    cut, white = u16(CUT, 257), np.where(CUT > 0, RGB, 255)
    for a, colour, want in ((np.concatenate([u16(RGB, k), cut], -1), 6, white), (np.concatenate([u16(RGB[..., :1], k), cut], -1), 4, white[..., :1])):
        (tmp_path/'y').write_bytes(png16(a, colour))
        assert np.abs(read(tmp_path/'y')[0] - want).max() <= 1, colour
    (tmp_path/'y').write_bytes(png16(u16(RGB, k), 2, struct.pack('>I', 6) + b'tRNS' + (t := struct.pack('>HHH', *u16(RGB, k)[20, 30])) + struct.pack('>I', zlib.crc32(b'tRNS' + t))))
    x, _ = read(tmp_path/'y')
    assert x[20, 30].tolist() == [255]*3 and np.abs(x - RGB)[:20].max() <= 1


# transparency and other modes

def test_a_fourth_channel_that_is_no_transparency(tmp_path):
    for k in (1, 257):
        up = lambda a: a if k == 1 else u16(a, k)
        for extra, said in (('unassalpha', 'called transparency'), ('assocalpha', 'called transparency'), ('unspecified', 'beyond the colours')):
            for kw in (dict(), dict(compression='zlib')):
                x, heard = read(tiff(tmp_path, up(np.concatenate([RGB, NIR], -1)), photometric='rgb', extrasamples=[extra], **kw))
                assert np.abs(x - RGB).max() <= 1 and said in heard.pop() and not heard, (k, extra, kw)
    x, heard = read(tiff(tmp_path, np.concatenate([RGB, NIR, NIR], -1), photometric='rgb', extrasamples=['unspecified']*2))
    assert np.abs(x - RGB).max() == 0 and heard

def test_transparency_over_white(tmp_path):
    logo, white = np.concatenate([RGB, CUT], -1), np.where(CUT > 0, RGB, 255)
    for extra in ('unassalpha', 'assocalpha'):
        x, heard = read(tiff(tmp_path, np.where(CUT > 0, logo, 0) if extra == 'assocalpha' else logo, photometric='rgb', extrasamples=[extra]))
        assert np.abs(x - white).max() == 0 and not heard
    half = np.concatenate([RGB//2, np.full_like(CUT, 128)], -1); half[:30, ..., 3], half[:30, ..., :3] = 255, RGB[:30]
    x, _ = read(tiff(tmp_path, half, photometric='rgb', extrasamples=['assocalpha']))
    assert np.abs(x - np.where(yy[..., None] < 30, RGB, RGB//2 + 127)).max() <= 1
    grey = np.stack([G, CUT[..., 0]], -1)
    for f in (tiff(tmp_path, grey, photometric='minisblack', extrasamples=['unassalpha']), tmp_path/'la.png'):
        if f.suffix == '.png': Image.fromarray(grey, 'LA').save(f)
        assert np.abs(read(f, 1)[0] - np.where(CUT[..., 0] > 0, G, 255)).max() == 0
    p = Image.fromarray(G).quantize(16); p.info['transparency'] = p.getpixel((30, 20)); p.save(tmp_path/'p.png'); p.save(tmp_path/'p.gif')
    one = Image.fromarray(G > 100); one.save(tmp_path/'1.png', transparency=0)
    assert [int(read(tmp_path/o, 1)[0][20, 30]) for o in ('p.png', 'p.gif')] == [255]*2 and read(tmp_path/'1.png', 1)[0].min() == 255

def test_print_and_lab(tmp_path):
    Image.fromarray(RGB).convert('CMYK').save(tmp_path/'c.jpg', quality=95)
    assert np.abs(read(tmp_path/'c.jpg')[0] - RGB).mean() < 8
    assert np.abs(read(tiff(tmp_path, np.asarray(Image.fromarray(RGB).convert('CMYK')), photometric='separated'))[0] - RGB).max() <= 1
    red = np.zeros((H, W, 3), np.uint8); red[:] = 136, 80, 67
    assert np.abs(read(tiff(tmp_path, red, photometric='cielab'))[0] - [250, 3, 11]).max() <= 3


# several pictures in a file

def test_the_first_of_several_is_read_and_counted(tmp_path, capsys):
    frames = [Image.new('RGB', (8, 8), (0, 60*k, 0)) for k in range(3)]
    for o in ('gif', 'webp', 'png', 'tif'): frames[0].save(tmp_path/f'x.{o}', save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path/'phone.jpg', 'MPO', save_all=True, append_images=frames[:1]); frames[1].save(tmp_path/'one.gif')
    with tifffile.TiffWriter(tmp_path/'pyramid.tif') as f:
        f.write(RGB, photometric='rgb'); f.write(RGB[::2, ::2], photometric='rgb', subfiletype=1)
    tifffile.imwrite(tmp_path/'stack.tif', np.stack([G, 255-G, G]), photometric='minisblack')
    files = image_files(tmp_path)
    assert [int(np.asarray(o).max()) for f, o in zip(files, decode_files(files, read_image)) if Path(f).stem == 'x'] == [0]*4
    assert capsys.readouterr().out == '5 of 8 images: only the first of several pictures in a file is read\n'
    I._said.clear()
    with pytest.warns(UserWarning, match='x.gif: only the first'): I.in_threads(read_image, [tmp_path/'x.gif'])
    with warnings.catch_warnings(): # said once, not in every epoch
        warnings.simplefilter('error', UserWarning)
        I.in_threads(read_image, files)


# what is refused

@pytest.mark.parametrize('a,kw,words', [
    (np.stack([G, G], -1), dict(photometric='minisblack', planarconfig='contig'), '2 channels of 8 bits'),
    (np.stack([G]*5), dict(photometric='minisblack', planarconfig='separate'), '5 channels of 8 bits'),
    (u16(np.stack([G]*5), 1), dict(photometric='minisblack', planarconfig='separate'), '5 channels of 16 bits'),
    (u16(RGB.transpose(2, 0, 1), 257), dict(photometric='rgb', planarconfig='separate'), '3 channels of 16 bits, plane after plane'),
    (RGB.astype(np.float32), dict(photometric='rgb'), '3 channels of 32 bits as floats'),
    (G.astype(np.float64), {}, '1 channel of 64 bits as floats'), (G.astype(np.int8), {}, '1 channel of 8 bits with a sign'),
    (u16(G, 1).astype('>u2'), dict(byteorder='>', photometric='miniswhite'), '1 channel of 16 bits, white is zero')])
def test_layouts_that_cannot_be_read(tmp_path, a, kw, words):
    with pytest.raises(I.Unreadable, match=f'a TIFF of {words}.*array'): read_image(tiff(tmp_path, a, **kw))

def test_other_things_by_their_names(tmp_path):
    for data, words in ((b'\0\0\0\x18ftypheic' + bytes(200), 'HEIC: pip install pillow-heif'), (bytes(128) + b'DICM' + bytes(99), 'DICOM: '), (b'8BPS' + bytes(99), 'a layered drawing'),
                        (b'II*\0' + bytes(99), 'not an image'), (b'II*\0\xff\xff\xff\0', 'not an image'), (b'a note to myself', 'not an image')):
        (tmp_path/'x.jpg').write_bytes(data)
        with pytest.raises(I.Unreadable, match=words): read_image(tmp_path/'x.jpg')

def test_damaged_tags(tmp_path):
    "Of a picture that is whole"
    f = tmp_path/'x.jpg'
    Image.fromarray(RGB).save(f, exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01', quality=95)
    assert np.abs(read(f)[0] - RGB).mean() < 8
    data = tiff(tmp_path, RGB, photometric='rgb', extratags=[(274, 3, 1, 99, True), (33432, 2, 0, 'x'*30, True)])
    assert np.array_equal(read(data)[0], RGB)

def test_damage_beside_the_pixels(tmp_path):
    "Of a PNG: only what its pixels need must be whole"
    part = lambda k, d, bad=0: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d) ^ bad)
    f, long = tmp_path/'x.png', zlib.compress(bytes(2*2**20))
    Image.fromarray(RGB).save(f)
    data = f.read_bytes()
    for k, d, bad in ((b'zTXt', b'k\0\0' + long, 0), (b'iTXt', b'k\0\1\0\0\0' + long, 0), (b'gAMA', b'\0\0\xb1\x8f', 1), (b'tRNS', bytes(6), 1)):
        for at in (33, len(data) - 12):
            f.write_bytes(data[:at] + part(k, d, bad) + data[at:])
            if k == b'tRNS':
                with pytest.raises(I.Unreadable): read_image(f)
            else: assert np.array_equal((x := read(f))[0], RGB) and 'beside its pixels' in x[1].pop() and image_sizes([f])[0, 0] == H

def test_nothing_to_see(tmp_path):
    "Transparent all over: the channel is not used"
    img = Image.fromarray(RGB); img.putalpha(0)
    for end in ('png', 'tga', 'webp'):
        img.save(tmp_path/f'x.{end}', **(dict(lossless=True, exact=True) if end == 'webp' else {}))
        x, heard = read(tmp_path/f'x.{end}')
        assert np.array_equal(x, RGB) and 'all of it is transparent' in heard.pop()


# which files

def test_what_is_left_out_of_a_folder(tmp_path, capsys):
    make = lambda *names: [((tmp_path/o).parent.mkdir(parents=True, exist_ok=True), (tmp_path/o).touch()) for o in names]
    make('a.jpg', 'b/c.PNG', 'b/._c.PNG', 'b/@eaDir/c.PNG/THUMB.jpg', '#recycle/old.jpg', '$RECYCLE.BIN/x.jpg', '__MACOSX/b/x.png', '.thumbnails/x.png', '.git/HEAD',
         'gmml_encoder/reconstructions.png', 'classifier/confusion.png', 'classifier/cat/x.png', 'mine/x.png',
         'left/x.npy', 'b/IMG_7', 'c.zip', 'p1.heic', 'p2.HEIC', 'r.CR2', 's.dcm', 'v.mp4', 'notes.txt')
    (tmp_path/'gmml_encoder/settings.json').write_text('{"command": "gmml_pretrain"}')
    (tmp_path/'mine/settings.json').write_text('{"command": "lightroom"}')
    make('classifier/config.json', 'classifier/model.safetensors')
    (tmp_path/'0').symlink_to('b'), (tmp_path/'loop').symlink_to('.'), (tmp_path/'z').symlink_to('.thumbnails')
    names = lambda d: [str(Path(o).relative_to(tmp_path)) for o in image_files(d)]
    assert names(tmp_path) == ['a.jpg', 'b/c.PNG', 'classifier/cat/x.png', 'mine/x.png', 'z/x.png']
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and all(o in out for o in ('1 hidden file', '@eaDir', '#recycle', '$RECYCLE.BIN', '__MACOSX', '.thumbnails', '2 pictures that gmml_nb wrote',
        "2 linked folders", '(left', '.zip: unpack', '.npy: ', 'suffixless', '1 raw camera file (.cr2', '1 DICOM file', '1 video file')) and '.git' not in out
    assert names(tmp_path/'gmml_encoder') == ['gmml_encoder/reconstructions.png'] and names(tmp_path/'b/@eaDir') == ['b/@eaDir/c.PNG/THUMB.jpg'] and not capsys.readouterr().out
    make('empty/v.mp4', 'empty/t.txt', 'empty/README', 'none/x')
    with pytest.raises(ValueError, match=r'no images below .*1 video file \(.mp4.*1 .txt file; 1 suffixless file'): image_files(tmp_path/'empty')

def test_heic_where_it_can_be_read(tmp_path, capsys, monkeypatch):
    "By a stand-in for pillow-heif, which registers a format"
    (tmp_path/'a.heic').touch()
    if '.heic' in Image.registered_extensions(): return
    with pytest.raises(ValueError, match='1 HEIC file .*pip install pillow-heif'): image_files(tmp_path)
    monkeypatch.setitem(Image.EXTENSION, '.heic', 'PNG')
    Image.fromarray(RGB).save(tmp_path/'a.heic', 'PNG')
    assert len(image_files(tmp_path)) == 1 and np.array_equal(read(tmp_path/'a.heic')[0], RGB) and not capsys.readouterr().out


def test_depth_that_cannot_be_meant(tmp_path, capsys):
    for depth in (8, {}, {'16bit': [0, 1]}, {'16-bit': 4095}, {'16-bit': [5, 5]}, {'16-bit': [0, '1']}, {'float': [0, float('nan')]}):
        with pytest.raises(ValueError, match='a dict of'): I.check_depth(depth)
    a = np.arange(4000, dtype=np.uint16).reshape(40, 100)
    for i in range(2): a[0, 0] = 60000*i; Image.fromarray(a).save(tmp_path/f'{i}.png')
    assert I.measure_depth([tmp_path/'0.png']) == {'16-bit': [0, 3999]} and 'fault' not in capsys.readouterr().out
    assert I.measure_depth([tmp_path/'0.png', tmp_path/'1.png']) == {'16-bit': [0, 65535]} and "depth={'16-bit': [0, 399" in capsys.readouterr().out
    assert I.say_unused({'float': [0, 1]}, {'16-bit', None}) and not I.say_unused({'16-bit': [0, 1]}, {'16-bit', None})


# one size

@pytest.mark.parametrize('resize', ['crop', 'pad', 'squish'])
@pytest.mark.parametrize('pct', [1., 224/256])
def test_one_size_is_timms(resize, pct):
    mean = (.2, .4, .6)
    for hw in ((H, W), (64, 48), (33, 33), (224, 224)):
        for size in ((32, 32), (24, 40), (64, 64)):
            img = Image.fromarray(RGB).resize(hw[::-1])
            timms = create_transform((3, *size), crop_pct=pct, crop_mode=crop_mode(resize), interpolation='bicubic', mean=mean, std=(1,)*3)(img) + torch.tensor(mean)[:, None, None]
            a, x = from_pil(fit_image(img, size, resize, pct, mean)), torch.from_numpy(from_pil(img).copy())[None]
            assert (torch.from_numpy(a/255) - timms).abs().max() < 1e-6
            b, c = fit_batch(x, size, resize, pct, mean)[0], fit_batch(x/255, size, resize, pct, mean)[0]
            assert np.abs(a.astype(int) - b.numpy()).mean() < .5 and (c - timms).abs().mean() < 3e-3
    assert fit_image(img, (224, 224), resize).tobytes() == img.tobytes() and fit_batch(x, (224, 224), resize) is x
    y = fit_batch(torch.rand(2, 5, 20, 60), (32, 32), resize, pct, (.1, .2, .3, .4, .5))
    assert y.shape == (2, 5, 32, 32) and (resize != 'pad' or torch.equal(y[0, :, 0, 0], torch.tensor([.1, .2, .3, .4, .5])))
    assert fit_image(Image.fromarray(G), (32, 32), resize, pct).size == (32, 32)

def test_stored_images_are_shown_as_files_are():
    img, size = Image.fromarray(RGB).resize((600, 400), Image.Resampling.BICUBIC), (64, 64)
    x = torch.from_numpy(from_pil(img.resize((300, 300), Image.Resampling.BICUBIC)).copy())[None]
    for resize in ('crop', 'pad', 'squish'):
        y = centre_crop(x, size, torch.tensor([[400, 600]]), resize, (.2, .4, .6))
        d = (y[0] - torch.from_numpy(from_pil(fit_image(img, size, resize, fill=(.2, .4, .6)))/255)).abs()
        assert d.mean() < .02 and not y.isnan().any(), resize


# stored

def test_depth_is_remembered_with_the_pixels(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('GMML_CACHE', str(tmp_path/'cache'))
    (d := tmp_path/'deep').mkdir()
    for i, top in enumerate((300, 500, 1000)): Image.fromarray((np.tile(np.linspace(0, 1, 99), (40, 1))*top).astype(np.uint16)).save(d/f'{i}.png')
    tifffile.imwrite(d/'stack.tif', u16(np.stack([G]*3), 1), photometric='minisblack')
    outs = []
    for kw in (dict(), dict(), dict(cache='ram')):
        s = C.load_stored(image_files(d), (16, 16), in_chans=1, folder=d, **kw)
        outs.append(capsys.readouterr().out.splitlines())
        assert s.depth == {'16-bit': [0, 1000]} and s.pixels[:3].amax((1, 2, 3)).tolist()[:2] == [76, 128]
    assert all(o[:2] == ['the brightest of 4 16-bit images is 1000 of 65535: scaled by 1000', '1 of 4 images: only the first of several pictures in a file is read'] for o in outs)
    assert [o in outs[i][2] for i, o in enumerate(('decoded in', 'reused', 'kept in RAM'))] == [True]*3
    other = C.load_stored(image_files(d), (16, 16), in_chans=1, folder=d, depth={'16-bit': [0, 2000]})
    assert other.depth == {'16-bit': [0, 2000]} and other.pixels[2].max() == 128 and 'decoded in' in capsys.readouterr().out
    assert len(list((tmp_path/'cache').glob('*.safetensors'))) == 2

def test_as_much_is_stored_as_there_is_room_for(tmp_path, capsys, monkeypatch):
    large, files = np.full((100, 2), [300, 2000]), ['']*100
    monkeypatch.setattr(C, 'room_for_pixels', lambda: 2**30)
    size = lambda free=None: C.store_size((64, 64), files, 3, free, large)
    assert size() == (287, 287)
    assert [size(int(2*f*2**20)) for f in (24, 11, 6, 1)] == [(287, 287), (192, 192), (144, 144), (96, 96)]
    assert C.store_size((224, 224), files, 3, None, np.array([[28, 28], [20, 40]])) == (28, 40) # small ones as they are
    Image.fromarray(RGB).resize((300, 200)).save(tmp_path/'a.jpg')
    for room, words in ((2**30, None), (1, 'stored at 1.5 times the size: crops of less than 44 % of an image are enlarged')):
        monkeypatch.setattr(C, 'room_for_pixels', lambda: room)
        s = C.load_stored([tmp_path/'a.jpg'], (32, 32), cache='ram')
        out = capsys.readouterr().out
        assert (words in out if words else 'enlarged' not in out) and s.pixels.shape[2:] == ((48, 48) if words else (144, 144))


# augmentation

def test_deit_rand_does_not_stop():
    stats = torch.tensor([.5]*3), torch.tensor([.25]*3)
    aug, img = Augment('deit-rand', (16, 16), stats), Image.fromarray(RGB)
    ra = aug.fs[1].transforms[0]
    op, = (o for o in ra.ops if 'Posterize' in o.name)
    op.magnitude, op.prob, op.magnitude_std = 10, 1., 0
    for m in ('RGB', 'L'): assert not np.asarray(op(img.convert(m))).any() # 0 bits are kept
    plain = Augment('deit-rand', (16, 16), stats) # and nothing else is drawn otherwise
    theirs = Augment('deit-rand', (16, 16), stats)
    for o in theirs.fs[1].transforms[0].ops:
        if 'Posterize' in o.name: o.aug_fn = auto_augment.posterize
    for seed in range(40):
        got = []
        for a in (plain, theirs):
            random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
            got.append(a(img))
        assert torch.equal(*got)

@pytest.mark.parametrize('c', [2, 4, 6])
def test_recipes_for_other_channels(c):
    stats = torch.zeros(c), torch.ones(c)
    for recipe in ('deit', 'deit-rand', lambda o: o):
        with pytest.raises(ValueError, match=f'{c} channels: take .light'): Augment(recipe, (8, 8), stats)
    for recipe in ('light', 'crop'): assert Augment(recipe, (8, 8), stats)(torch.rand(c, 20, 30)).shape == (c, 8, 8)
