use super::schema::Referenced;
#[derive(Clone, Debug)]
pub(super) struct Protobuf;
impl Protobuf {
    pub(super) fn parse(_: &str, _: &[Referenced]) -> Result<Self, String> {
        Err("PROTOBUF is not supported".into())
    }
    pub(super) fn canonical(&self) -> String {
        String::new()
    }
    pub(super) fn serialized(&self) -> String {
        String::new()
    }
    pub(super) fn normalized(&self) -> String {
        String::new()
    }
    pub(super) fn cannot_read(&self, _: &Self) -> Vec<String> {
        vec![]
    }
}
