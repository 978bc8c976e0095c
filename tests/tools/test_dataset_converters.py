"""tools/dataset_converters, on small folders of the published layouts."""

import json

import cv2
import numpy as np
import pytest

from .test_train_test import load_tool

XML = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>64</width><height>48</height><depth>3</depth></size>
  <object>
    <name>{label}</name><truncated>0</truncated><difficult>{hard}</difficult>
    <bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>48</ymax></bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def convert(monkeypatch):
    """Runs a converter with arguments; returns its exit status."""

    def run(name, *arguments):
        tool = load_tool(f'dataset_converters/{name}', monkeypatch)
        monkeypatch.setattr('sys.argv', [name, *map(str, arguments)])
        return tool.main()

    return run


def write_voc(source):
    """BCCD_Dataset's layout, with four images."""
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (source / folder).mkdir(parents=True)
    for number, label in enumerate(('RBC', 'WBC', 'Platelets', 'RBC')):
        name = f'BloodImage_{number:05}'
        image = np.zeros((48, 64, 3), np.uint8)
        cv2.imwrite(str(source / 'JPEGImages' / f'{name}.jpg'), image)
        text = XML.format(name=name, label=label, hard=int(number == 3))
        (source / 'Annotations' / f'{name}.xml').write_text(text)
    for split, numbers in dict(train=(0, 1), val=(2,), test=(3,)).items():
        lines = ''.join(f'BloodImage_{n:05}\n' for n in numbers)
        (source / 'ImageSets' / 'Main' / f'{split}.txt').write_text(lines)


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / 'BCCD')
    return tmp_path / 'BCCD'


def read(out, split):
    path = out / 'annotations' / f'instances_{split}.json'
    return json.loads(path.read_text())


def test_voc_boxes_count_from_zero(voc, convert, tmp_path, capsys):
    out = tmp_path / 'out'
    order = ('RBC', 'WBC', 'Platelets')
    assert convert('voc', voc, out, '--classes', *order) == 0
    assert f'classes = {order}' in capsys.readouterr().out
    train = read(out, 'train')
    assert [c['name'] for c in train['categories']] == list(order)
    assert [a['category_id'] for a in train['annotations']] == [1, 2]
    assert train['annotations'][0]['bbox'] == [0, 2, 10, 46]
    assert train['images'][1]['file_name'] == 'BloodImage_00001.jpg'
    assert (out / 'images/train/BloodImage_00001.jpg').is_file()
    assert read(out, 'test')['annotations'][0]['iscrowd'] == 1


def test_voc_classes_are_found(voc, convert, tmp_path, capsys):
    assert convert('voc', voc, tmp_path / 'out', '--splits', 'val') == 0
    assert "('Platelets', 'RBC', 'WBC')" in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--classes', 'RBC'], "the class 'WBC'; --classes names RBC"),
        (['--splits', 'none'], "there are ['test', 'train', 'val']"),
    ],
)
def test_voc_mistakes(arguments, said, voc, convert, tmp_path, capsys):
    assert convert('voc', voc, tmp_path / 'out', *arguments) == 1
    assert said in capsys.readouterr().err


def test_voc_folder_of_something_else(convert, tmp_path, capsys):
    assert convert('voc', tmp_path, tmp_path / 'out') == 1
    assert 'holds no Annotations/*.xml' in capsys.readouterr().err


def change(voc, old, new, name='Annotations/BloodImage_00000.xml'):
    path = voc / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    'old, new, said',
    [
        ('</annotation>', '', "00.xml' is no XML: no element found"),
        ('annotation>', 'html>', "00.xml' is no annotation: it holds <html>"),
        ('<name>RBC</name>', '', "00.xml': an object has no <name>"),
        ('<xmax>10</xmax>', '', "00.xml': <bndbox/xmax> must be a number"),
        ('<xmax>10<', '<xmax>ten<', "must be a number, got 'ten'"),
        ('<xmax>10<', '<xmax>nan<', "must be a number, got 'nan'"),
        ('<width>64<', '<width>65<', '<width> is 65, and that of '),
    ],
)
def test_voc_broken_annotation(old, new, said, voc, convert, tmp_path, capsys):
    change(voc, old, new)
    assert convert('voc', voc, tmp_path / 'out') == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_voc_size_of_an_annotation_may_lack(voc, convert, tmp_path):
    change(voc, '<width>64</width><height>48<', '<height>0<')
    assert convert('voc', voc, tmp_path / 'out') == 0
    image = read(tmp_path / 'out', 'train')['images'][0]
    assert (image['width'], image['height']) == (64, 48)


@pytest.mark.parametrize(
    'corners, box, said',
    [
        ((0, 1, 10, 48), [0, 0, 10, 48], 'train: 1 boxes clipped at the bord'),
        ((60, 3, 66, 9), [59, 2, 5, 7], 'train: 1 boxes clipped at the bord'),
        ((9, 3, 8, 48), None, 'train: 1 boxes dropped, which are empty'),
        ((9, 30, 12, 3), None, 'train: 1 boxes dropped, which are empty'),
        ((90, 3, 99, 48), None, 'train: 1 boxes dropped, which are empty'),
        ((1, 1, 64, 48), [0, 0, 64, 48], ''),
    ],
    ids=['left', 'right', 'no-width', 'negative', 'outside', 'whole'],
)
def test_voc_box_out_of_its_image(
    corners, box, said, voc, convert, tmp_path, capsys
):
    tags = ('xmin', 'ymin', 'xmax', 'ymax')
    for tag, old, new in zip(tags, (1, 3, 10, 48), corners, strict=True):
        change(voc, f'<{tag}>{old}<', f'<{tag}>{new}<')
    assert convert('voc', voc, tmp_path / 'out') == 0
    first, *others = read(tmp_path / 'out', 'train')['annotations']
    assert (first['bbox'] if others else None) == box
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    'name, content, said',
    [
        ('ImageSets/Main/val.txt', b'\n', "val.txt' names no image"),
        ('ImageSets/Main/val.txt', b'\xff', "val.txt' is no text in UTF-8"),
        ('ImageSets/Main/val.txt', b'a\na\n', "names 'a' twice"),
        ('JPEGImages/BloodImage_00000.jpg', b'', 'is no image that can be'),
    ],
    ids=['empty', 'binary', 'repeated', 'image'],
)
def test_voc_broken_file(name, content, said, voc, convert, tmp_path, capsys):
    (voc / name).write_bytes(content)
    assert convert('voc', voc, tmp_path / 'out') == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--classes', '--splits'])
def test_voc_name_that_is_given_twice(option, voc, convert, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert('voc', voc, tmp_path / 'out', option, 'a', 'b', 'a')
    assert f"{option} names 'a' twice" in capsys.readouterr().err


def write_stage1_train(source):
    """The layout of the Data Science Bowl: two squares in each RGBA image."""
    for number in range(8):
        name = f'{number:064x}'
        for folder in ('images', 'masks'):
            (source / name / folder).mkdir(parents=True)
        image = np.zeros((32, 40, 4), np.uint8)
        cv2.imwrite(str(source / name / 'images' / f'{name}.png'), image)
        for index, side in enumerate((6, 9, 1)):
            mask = np.zeros((32, 40), np.uint8)
            left = 12 * index + 1
            mask[3 : 3 + side, left : left + side] = 255
            cv2.imwrite(str(source / name / 'masks' / f'{index}.png'), mask)


@pytest.fixture
def stage1_train(tmp_path):
    write_stage1_train(tmp_path / 'stage1_train')
    return tmp_path / 'stage1_train'


def test_masks_become_instances_and_maps(stage1_train, convert, tmp_path):
    pycocotools = pytest.importorskip(
        'pycocotools.mask', reason='pycocotools is not installed'
    )
    out = tmp_path / 'out'
    assert convert('instance_masks', stage1_train, out, '--val-every=3') == 0
    train, val = read(out, 'train'), read(out, 'val')
    assert len(train['images']) + len(val['images']) == 8
    # The third mask has a single pixel.
    assert len(train['annotations']) == 2 * len(train['images'])
    first = train['annotations'][0]
    assert first['bbox'] == [1, 3, 6, 6]
    assert first['area'] == 36
    assert pycocotools.decode(first['segmentation'])[3:9, 1:7].sum() == 36
    stem = train['images'][0]['file_name'].removesuffix('.png')
    segmap = cv2.imread(str(out / f'segmaps/train/{stem}.png'), -1)
    assert segmap.shape == (32, 40)
    assert segmap.sum() == 36 + 81


def test_masks_of_another_size_are_refused(
    stage1_train, convert, tmp_path, capsys
):
    path = sorted(stage1_train.rglob('masks/0.png'))[0]
    cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    assert convert('instance_masks', stage1_train, tmp_path / 'out') == 1
    assert 'has the shape (8, 8)' in capsys.readouterr().err


def test_what_would_be_lost_is_refused(
    stage1_train, convert, tmp_path, capsys
):
    again = ('instance_masks', stage1_train)
    assert convert(*again, tmp_path / 'out', '--val-every=3') == 0
    assert convert(*again, tmp_path / 'out', '--val-every=3') == 1
    assert 'must be empty' in capsys.readouterr().err
    first = sorted(stage1_train.iterdir())[0]
    (first / 'masks').rename(first / 'kept')
    assert convert(*again, tmp_path / 'masks', '--val-every=3') == 1
    assert 'must hold PNG files' in capsys.readouterr().err
    (first / 'kept').rename(first / 'masks')
    for folder in stage1_train.iterdir():
        (image,) = (folder / 'images').iterdir()
        image.rename(image.with_name('image.png'))
    assert convert(*again, tmp_path / 'names', '--val-every=3') == 1
    assert 'another image has its name' in capsys.readouterr().err
