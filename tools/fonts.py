"""Make the small fonts that boards are drawn with: `python tools/fonts.py PIECES.ttf TEXT.otf`

PIECES is Shippori Mincho Bold (github.com/fontdasu/ShipporiMincho), TEXT Noto Sans CJK JP Regular
(github.com/notofonts/noto-cjk), both under the SIL Open Font License 1.1, which lies beside what is
written. Only the letters that boards need are kept, under names of their own, as the licence wants.
"""
import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

FONTS = Path(__file__).resolve().parents[1]/'maou_nb'/'show'/'fonts'
PIECES = '歩香桂銀金角飛玉王と杏圭全馬龍竜'
TEXT = (''.join(map(chr, (*range(0x20, 0x7f), *range(0xa0, 0x180), *range(0x3041, 0x3100))))
        + PIECES + '☗☖△▲▽▼○●★☆–—‘’“”…·•×±−≤≥≈→←↑↓⇒∞√'
        + '一二三四五六七八九十〇０１２３４５６７８９成同不打上下左右直寄引行先後手番勝負引分投了合法利局面駒持'
        + '、。「」（）：％')

def write(source, number, letters, family, name):
    "The `letters` of a font as a file of its own"
    font = TTFont(source, fontNumber=number)
    options = subset.Options(layout_features=['kern', 'vert'], name_IDs=[0, 1, 2, 4, 6, 13, 14], hinting=False)
    cut = subset.Subsetter(options)
    cut.populate(text=letters)
    cut.subset(font)
    for record in font['name'].names:
        said = {1: family, 4: family, 6: family.replace(' ', '')}.get(record.nameID)
        if said: record.string = said
    if 'CFF ' in font:
        top = font['CFF '].cff
        top.fontNames = [family.replace(' ', '')]
        top.topDictIndex[0].FullName = top.topDictIndex[0].FamilyName = family
    font.save(FONTS/name)
    print(f'{name}: {len(font.getBestCmap())} letters, {(FONTS/name).stat().st_size/1e3:.0f} kB')

if __name__ == '__main__':
    FONTS.mkdir(exist_ok=True)
    write(sys.argv[1], -1, PIECES, 'Maou Pieces', 'pieces.ttf')
    write(sys.argv[2], 0, TEXT, 'Maou Text', 'text.otf')
