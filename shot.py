import sys
from playwright.sync_api import sync_playwright
pages=dict(p.split('=') for p in sys.argv[1:])
with sync_playwright() as pw:
    b=pw.chromium.launch(executable_path='/usr/bin/chromium',args=['--no-sandbox'])
    for name,path in pages.items():
        pg=b.new_page(viewport={'width':1300,'height':1000}); pg.goto('file:///work/main/_docs/'+path); pg.wait_for_timeout(800)
        h=pg.evaluate('document.body.scrollHeight'); print(name,h)
        pg.screenshot(path=f'/tmp/q/{name}.png',full_page=True)
    b.close()
